"""Notebooks run, shown as pages, kept in the repository, and made into a site and documents."""
