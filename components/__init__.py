"""KFP components: one thin file each. A body imports the library and makes one call."""
