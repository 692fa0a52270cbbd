"One thread, here and in what tests start: networks as small as these spend more time waiting for a second one than it saves"
import os

os.environ['OMP_NUM_THREADS'] = '1'     # read once, when torch is imported
