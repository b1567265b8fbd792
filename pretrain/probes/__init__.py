"""Small synthetic tasks that tell sequence mixers apart."""
