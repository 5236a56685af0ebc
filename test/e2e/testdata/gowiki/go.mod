module gowiki

go 1.24
