"""What one does with a trained adapter, on the base that it was trained on.

`load` reads it, and `effect` measures it; `merge` puts its dW into the weights; `algebra` adds, scales and subtracts
LoRAs; `extract` makes one out of a full fine-tune, or a smaller one out of a larger; `family` holds many on one base,
for batches whose rows use different ones. `minillm.adapt` offers all of these, and a method saves itself.
"""
