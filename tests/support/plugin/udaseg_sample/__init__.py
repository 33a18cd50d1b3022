"""Parts for udaseg: a backbone, a regularizer and a label format."""
