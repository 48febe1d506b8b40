"""What a run keeps on disk: checkpoints and the files of its workdir."""
