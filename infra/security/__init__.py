"""Who may come in: the door in front of every service, its sign-in page, and a server with time limits."""
