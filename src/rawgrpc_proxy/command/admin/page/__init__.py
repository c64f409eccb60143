"""The page of the admin listener: what a person sees at `/`. Files to be served as they are, no code.

`index.html`, `page.css`, `page.js` and `favicon.svg` know the listener by `events` and `config` alone, by relative
URLs, so the page may live under any prefix. It only reads: there is no button here that changes the proxy.

Invariant: nothing inline and nothing from elsewhere, so that it works under `Content-Security-Policy: default-src
'self'`, without a network; and whatever peers have a say in becomes text, never markup.
"""
