"""The checks, one file each, named <author><year>_<what>.py; a leading underscore marks what some of them share."""
