module tollgate/bench/load

go 1.26
