"""What a run keeps on the disk: the folder, its record and its checkpoints."""
