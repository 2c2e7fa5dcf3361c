"""The accuracy of layers at real models' sizes against bf16, and a mixture's stage times."""
