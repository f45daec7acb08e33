"""Files and folders: written as a whole or not at all, read as data of which nothing is run."""
