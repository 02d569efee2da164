#!/bin/bash
# On the first node:  examples/two_nodes.sh 0 FIRST_NODE
# On the second one:  examples/two_nodes.sh 1 FIRST_NODE

node_rank=${1:?0 on the first node, 1 on the second}
first_node=${2:?name or address of the first node}

torchrun --nnodes 2 --node_rank "$node_rank" --nproc_per_node "${GPUS:-8}" \
    --master_addr "$first_node" --master_port 29500 \
    -m loraprune prune "${MODEL:-meta-llama/Llama-3.1-8B}" --data "${DATA:-data.jsonl}" -o "${OUT:-pruned}"
