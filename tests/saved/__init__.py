"""Files that earlier versions wrote, and what goes on reading them."""
