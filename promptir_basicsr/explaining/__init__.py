"""What `basicsr explain` measures, draws and writes."""
