"""Clients and servers of the matrix, in several languages and libraries; catalogue.py lists them."""
