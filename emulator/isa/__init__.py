"""What PTX instructions do: one file a group of them, as PTX ISA groups them."""
