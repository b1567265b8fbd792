"""Starts `pretrain` as processes and watches them; it never computes and never imports `pretrain`."""
