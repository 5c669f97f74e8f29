"""Where pictures lie, and the signed addresses through which they come and go."""
