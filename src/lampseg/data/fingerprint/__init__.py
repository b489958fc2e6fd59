"""What a dataset holds, before anything is trained: figures of every case, and of all together."""
