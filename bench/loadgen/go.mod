module entrepot.dev/loadgen

go 1.26
