"""The models a study can name: one file each."""
