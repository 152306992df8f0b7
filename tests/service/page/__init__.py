"""The page in Chromium. A package, since fixtures that last a package need one."""
