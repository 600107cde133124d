// Asks batchpipe's JSON view how the job is doing, and loads the page anew when it has ended.
"use strict";

const job = document.getElementById("job");
const show = (id, text) => { document.getElementById(id).textContent = text; };
const words = {
  pending: "your table is being sent", preparing: "your table is being checked",
  finalizing: "the answers are put in order", cancelling: "stopping; what has been answered is kept",
};

async function look() {
  try {
    const answer = await fetch(job.dataset.status, { headers: { Accept: "application/json" } });
    const status = await answer.json();
    if (!answer.ok) throw new Error(status.error.message);
    if (["succeeded", "partial", "failed", "cancelled"].includes(status.state)) return location.reload();
    const done = status.shards.reduce((sum, shard) => sum + (shard.request_counts.completed || 0) + (shard.request_counts.failed || 0), 0);
    const state = document.getElementById("state");
    state.textContent = status.state;
    state.className = `state ${status.state}`;
    show("rows", words[status.state] || `${done} of ${status.rows.total} rows answered`);
    const bar = document.getElementById("progress");
    bar.max = status.rows.total || 1;
    bar.value = done;
    document.getElementById("problem").hidden = true;
  } catch (error) {
    show("problem", `The job cannot be asked just now (${error.message}); it goes on all the same.`);
    document.getElementById("problem").hidden = false;
  }
  setTimeout(look, 1000);
}

look();
