"""Teachers behind a server: rows asked for over HTTP."""
