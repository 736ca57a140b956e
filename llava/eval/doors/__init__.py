"""What the answering programs of the reference do behind their flags: a module each; they load torch."""
