from v2f.api import DataSet as DataSet
from v2f.api import Loader as Loader
from v2f.api import Model as Model
from v2f.api import load as load
from v2f.api import open_dataset as open_dataset
from v2f.api import train as train

__version__: str
