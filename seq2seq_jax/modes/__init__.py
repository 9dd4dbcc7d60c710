"""What `--mode` can be: one file for each, from a config and a folder to what people see."""
