"""Who may speak: a private CA, what it issued and revoked, and what a server makes of a certificate. The only package that needs `cryptography`."""
