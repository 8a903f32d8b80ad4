"""Order in which windows are read: stored or streamed, from one source or several, in whole optimizer steps."""
