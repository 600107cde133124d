"""At home in web frameworks. Nothing here is imported unless a site asks for it."""
