"""klent inside other libraries."""
