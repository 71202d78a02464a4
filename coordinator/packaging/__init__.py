"""One file that installs the client on a device without internet (docs/adr/0025).

Made on the server: our own wheel, every wheel of the device's, `installer.py`, which runs there.
"""
