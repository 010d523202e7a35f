from solver.entries_numpy import firsts as firsts
from solver.entries_numpy import hashes as hashes
from solver.entries_numpy import places as places
from solver.entries_numpy import products as products
from solver.entries_numpy import products_of_rows as products_of_rows
from solver.entries_numpy import taken as taken

IS_COMPILED: bool
