module oxy/bench

go 1.27
