"""How a job is carried out: the turns of shards and jobs, the sweep, the files of a workspace, and the steps."""
