"""Who is known and what they may do: identities and decisions. No sockets, no files, no clock."""
