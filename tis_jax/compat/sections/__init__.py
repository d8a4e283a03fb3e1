"""Where the options of each peer stand in its configuration: a file a peer."""
