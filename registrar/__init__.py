"""The server side of identities: the private authority, the registry of devices, the broker's
access files, and the commands that change them."""
