"""Forms of the law: their equations, derivatives and inverses."""
