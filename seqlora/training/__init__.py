"""From pictures to a concept file."""
