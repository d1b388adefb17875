"""One picture: decoded, checked, encoded, shown."""
