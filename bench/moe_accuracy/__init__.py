"""How near layers of a mixture of experts are to bf16 at real models' sizes, and their times."""
