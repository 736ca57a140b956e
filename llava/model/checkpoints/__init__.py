"""Everything on disk: safe reading, loading, saving, atomic writing, quantisation, foreign files."""
