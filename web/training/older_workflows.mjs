// Workflows that were saved when Train SeqLoRA Concept had all options itself, made new before the editor reads them: values
// are saved by their place. What was not at its default goes to a SeqLoRA Training Options node.
import { OPTIONS, TRAIN } from '../shared/kinds.mjs'

const STAYED = ['concept_name', 'trigger', 'class_word', 'steps', 'batch_size', 'learning_rate', 'seed', 'preview_every']
// Widgets of the older node in their order, with its defaults where the inputs have moved.
const OLDER = {
  concept_name: null, trigger: null, class_word: null, steps: null, batch_size: null, learning_rate: null,
  basis_learning_rate: 3e-5, seed: null, method: 'seqlora', orthogonality: 'exact', context: 'stochastic',
  basis_start: 'contrastive', schedule: 'joint', inner_steps: 4, interference: 0.4, gradient_checkpointing: true,
  when_full: 'metric', checkpoint_minutes: 2, preview_every: null, preview_prompt: ''
}
const RENAMED = { context: 'co_training', basis_start: 'basis_init', interference: 'interference_weight' }
const FOLLOWS = 0.3 // the basis learns at this share of the rate by itself

export function olderWorkflows() {
  return {
    beforeConfigureGraph(workflow) {
      renewed(workflow, LiteGraph.registered_node_types[OPTIONS].nodeData.input.optional)
    }
  }
}

// Changes the workflow in place. `inputs` of the node of options: name -> [type, { default }], in their order.
export function renewed(workflow, inputs) {
  const graphs = [workflow, ...workflow.definitions?.subgraphs ?? []]
  const ids = { node: highest(graphs, 'nodes'), link: highest(graphs, 'links') }
  for (const graph of graphs) {
    for (const node of [...graph.nodes ?? []]) {
      if (node.type === TRAIN && node.widgets_values?.length >= Object.keys(OLDER).length) split(graph, node, ids, inputs)
    }
  }
  if (workflow.last_node_id < ids.node) workflow.last_node_id = ids.node
  if (workflow.last_link_id < ids.link) workflow.last_link_id = ids.link
  for (const { state } of graphs) {
    if (state?.lastNodeId < ids.node) state.lastNodeId = ids.node
    if (state?.lastLinkId < ids.link) state.lastLinkId = ids.link
  }
}

function highest(graphs, kind) {
  const ids = graphs.flatMap((graph) => (graph[kind] ?? []).map((one) => Number(one.id ?? one[0])))
  return Math.max(0, ...ids.filter(Number.isFinite))
}

function split(graph, node, ids, inputs) {
  const values = Object.fromEntries(Object.keys(OLDER).map((name, place) => [name, node.widgets_values[place]]))
  const slots = node.inputs ?? []
  const moved = slots.filter(({ name }) => name in OLDER && !STAYED.includes(name))
  const linked = moved.filter(({ link }) => link != null)
  setWidgets(node, STAYED.map((name) => [name, values[name]]))
  node.inputs = slots.filter((slot) => !moved.includes(slot))
  const chosen = choices(values)
  if (chosen || linked.length) {
    const options = optionsNode(node, chosen ?? {}, ids, inputs)
    graph.nodes.push(options)
    connect(graph, options, node, ++ids.link)
    for (const { name, link } of linked) {
      const place = options.inputs.findIndex((slot) => slot.name === (RENAMED[name] ?? name))
      options.inputs[place].link = link
    }
    aim(graph, options)
  }
  aim(graph, node)
}

// What the older node was told otherwise than its defaults, under today's names; null if nothing.
function choices(values) {
  const { learning_rate: rate, basis_learning_rate: basis } = values
  const follows = Math.abs(basis - FOLLOWS * rate) <= 1e-6 * rate
  const given = Object.entries(values).filter(([name]) => !STAYED.includes(name))
  // Whether gradient_checkpointing was on by itself depended on the machine.
  const usual = ([name, value]) => name === 'gradient_checkpointing' ||
    (name === 'basis_learning_rate' ? follows : value === OLDER[name])
  if (given.every(usual)) return null
  const today = given.map(([name, value]) => [RENAMED[name] ?? name, value === 'free' ? 'none' : value])
  const chosen = { ...Object.fromEntries(today), gradient_checkpointing: values.gradient_checkpointing ? 'on' : 'off' }
  return follows ? { ...chosen, basis_learning_rate: -1 } : chosen
}

function optionsNode(node, chosen, ids, inputs) {
  const widgets = Object.entries(inputs)
  const made = {
    id: ++ids.node,
    type: OPTIONS,
    pos: [node.pos[0], node.pos[1] - 80],
    size: [320, 420],
    flags: { collapsed: true },
    order: node.order,
    mode: node.mode,
    inputs: widgets.map(([name, [type]]) => ({ localized_name: name, name, shape: 7, type, widget: { name }, link: null })),
    outputs: [{ localized_name: 'options', name: 'options', type: 'SEQLORA_TRAINING_OPTIONS', links: [] }],
    properties: { ...node.properties, 'Node name for S&R': OPTIONS }
  }
  setWidgets(made, widgets.map(([name, [, about]]) => [name, chosen[name] ?? about.default]))
  return made
}

function setWidgets(node, entries) {
  node.widgets_values = entries.map(([, value]) => value)
  node.widgets_values_named = Object.fromEntries(entries)
}

function connect(graph, options, node, link) {
  options.outputs[0].links.push(link)
  const type = 'SEQLORA_TRAINING_OPTIONS'
  node.inputs.push({ localized_name: 'options', name: 'options', shape: 7, type, link })
  graph.links ??= []
  if (Array.isArray(graph.links[0])) graph.links.push([link, options.id, 0, node.id, node.inputs.length - 1, type])
  else graph.links.push({ id: link, origin_id: options.id, origin_slot: 0, target_id: node.id, target_slot: 0, type })
}

// Points the links at the inputs that name them, which are elsewhere now.
function aim(graph, node) {
  node.inputs.forEach(({ link }, place) => {
    const found = (graph.links ?? []).find((one) => link != null && (one.id ?? one[0]) === link)
    if (Array.isArray(found)) [found[3], found[4]] = [node.id, place]
    else if (found) Object.assign(found, { target_id: node.id, target_slot: place })
  })
}
