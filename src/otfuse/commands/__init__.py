"""What stands behind the commands beside ``fuse``, one file each: from names of folders to results; nothing prints."""
