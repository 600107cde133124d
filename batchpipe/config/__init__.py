"""Settings, read once at the edge, what a site's framework gives, and limits that follow from them."""
