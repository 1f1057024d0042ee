// The training panel on the node that trains, and what is said when a training ends. A node that never trained has no panel, and
// nothing of a panel is saved with a workflow.
import { forwardToCanvas, hosted } from '../shared/dom_widget.mjs'
import { TRAIN } from '../shared/kinds.mjs'
import { isPoor, outcome } from './state.mjs'
import { openTrainings } from './trainings.mjs'
import { TrainingView } from './view.mjs'

export function panels({ app, api, t }) {
  const trainings = openTrainings({ api, t })
  const shown = new WeakMap() // node -> its panel

  function show(training) {
    if (training.workflow !== app.rootGraph.id) return
    for (const node of places(app.rootGraph, training.node)) {
      if (!shown.has(node)) shown.set(node, addPanel(node))
      shown.get(node).show(training)
    }
  }

  function addPanel(node) {
    const view = new TrainingView({ t, trainings })
    forwardToCanvas(view.element, app)
    view.room = hosted(app, node, 'training', view.element).room
    return view
  }

  // Of what failed the host tells, and of what was found again there is nothing to tell.
  function announce(training) {
    const { openWorkflows } = app.extensionManager.workflow
    const isOurs = openWorkflows.some(({ activeState }) => activeState?.id === training.workflow)
    if (training.phase !== 'finished' || training.reused || !(isOurs || training.workflow === app.rootGraph.id)) return
    app.extensionManager.toast.add(isPoor(training)
      ? { severity: 'warn', summary: t(`panel.phase.${outcome(training)}`, training), detail: training.note, life: 20_000 }
      : { severity: 'success', summary: t('panel.toast', training), detail: t('panel.ended.finished', training), life: 8_000 })
  }

  trainings.onChange((training, hasEnded) => {
    show(training)
    if (hasEnded) announce(training)
  })

  return {
    setup: () => trainings.start(),
    afterConfigureGraph: () => trainings.all().forEach(show)
  }
}

// The node at the end of a path such as "12:5", node 5 inside of the subgraph that node 12 of the root graph stands for, and that
// node 12, which is what one sees of it. None if no training node is there.
function places(root, path) {
  const nodes = []
  let graph = root
  for (const id of path.split(':')) {
    const node = graph?.getNodeById(id)
    nodes.push(node)
    graph = node?.subgraph
  }
  return nodes.at(-1)?.type === TRAIN ? new Set([nodes[0], nodes.at(-1)]) : []
}
