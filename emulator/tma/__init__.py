"""The TMA unit: tensor maps, their boxes, and the asynchronous bulk copies."""
