"""How chapters become a book: runs, parameters, records, claims, pages, figures. Nothing but notebooks uses it."""
