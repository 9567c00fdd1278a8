"""Everything that is measured on a GPU, part by part. Scripts beside this folder run it."""
